-- +goose Up

-- The index of the audit log is written for full bundles alone (D-109).
DELETE FROM audit_posting WHERE bundle >= (SELECT size / 256 FROM audit_head);
DELETE FROM audit_bundle WHERE n >= (SELECT size / 256 FROM audit_head);

-- +goose Down
