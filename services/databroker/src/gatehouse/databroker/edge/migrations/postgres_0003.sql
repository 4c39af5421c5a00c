-- Payloads in clear are not looked for any more: they do not open.
DROP INDEX gatehouse.records_in_clear;
DROP INDEX gatehouse.record_changes_in_clear;
