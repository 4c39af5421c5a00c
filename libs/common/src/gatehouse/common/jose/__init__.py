"""Signing, sealing and verifying: JWTs, key sets, authenticated encryption, signed URLs."""
