-- +goose Up

-- Identity (package localnhi): tenants, keys that are replaced, and what is
-- revoked beside principals.
CREATE TABLE tenant (
    name       TEXT   NOT NULL PRIMARY KEY,
    created_ns BIGINT NOT NULL
);

DROP INDEX signing_key_owner;
ALTER TABLE signing_key ADD COLUMN retired_ns BIGINT NOT NULL DEFAULT 0; -- 0: in use; else it only verifies, and its seed is gone
CREATE UNIQUE INDEX signing_key_active ON signing_key (owner, role) WHERE retired_ns = 0;
CREATE INDEX signing_key_owner ON signing_key (owner, role, created_ns);

CREATE TABLE key_certificate ( -- of one root for another
    digest BLOB NOT NULL PRIMARY KEY,
    body   BLOB NOT NULL
);

ALTER TABLE revocation ADD COLUMN kind TEXT NOT NULL DEFAULT 'principal'; -- principal, link, token, changed
CREATE TABLE revoked_link (
    digest BLOB NOT NULL PRIMARY KEY
);
CREATE TABLE revoked_token (
    jti        TEXT   NOT NULL PRIMARY KEY,
    expires_ns BIGINT NOT NULL
);

-- +goose Down
DROP TABLE revoked_token;
DROP TABLE revoked_link;
ALTER TABLE revocation DROP COLUMN kind;
DROP TABLE key_certificate;
DROP INDEX signing_key_owner;
DROP INDEX signing_key_active;
ALTER TABLE signing_key DROP COLUMN retired_ns;
CREATE UNIQUE INDEX signing_key_owner ON signing_key (owner, role);
DROP TABLE tenant;
