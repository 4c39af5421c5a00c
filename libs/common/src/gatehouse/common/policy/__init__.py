"""The policy language: what a policy says (ast, parser, matchers), without deciding anything."""
