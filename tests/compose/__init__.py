"""The scaled deployment in containers, under faults and a steady load: `make compose-test`."""
