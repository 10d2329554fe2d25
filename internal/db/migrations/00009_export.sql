-- +goose Up

-- How far each export of the audit log is (package export).
CREATE TABLE audit_export (
    name       TEXT   NOT NULL PRIMARY KEY,
    next_leaf  BIGINT NOT NULL, -- every record below is delivered
    bound_leaf BIGINT NOT NULL  -- what is being delivered ends below; it is repeated as it was begun
);

-- +goose Down
DROP TABLE audit_export;
