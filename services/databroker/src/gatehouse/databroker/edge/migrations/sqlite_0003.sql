-- Payloads in clear are not looked for any more: they do not open.
DROP INDEX records_in_clear;
DROP INDEX record_changes_in_clear;
