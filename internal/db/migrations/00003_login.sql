-- +goose Up

-- Human login (package login). A principal is a full SPIFFE id, so its tenant
-- is part of every key.

-- How and when a session's human was last known for certain. Sessions from
-- before are nobody's proof of anything.
ALTER TABLE session ADD COLUMN method TEXT NOT NULL DEFAULT 'token'; -- bootstrap passkey oidc token
ALTER TABLE session ADD COLUMN authenticated_ns BIGINT NOT NULL DEFAULT 0;
CREATE INDEX session_principal ON session (principal);
ALTER TABLE login_code ADD COLUMN method TEXT NOT NULL DEFAULT 'bootstrap';

CREATE TABLE passkey_user (
    principal TEXT NOT NULL PRIMARY KEY,
    handle    BLOB NOT NULL UNIQUE -- random; all that an authenticator learns of who it is
);
CREATE TABLE passkey (
    principal  TEXT    NOT NULL REFERENCES passkey_user (principal),
    credential BLOB    NOT NULL,
    rp_id      TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    public_key BLOB    NOT NULL, -- COSE_Key
    aaguid     BLOB    NOT NULL,
    transports TEXT    NOT NULL, -- separated by spaces
    flags      INTEGER NOT NULL, -- of the newest authenticator data
    sign_count BIGINT  NOT NULL,
    cloned     INTEGER NOT NULL DEFAULT 0, -- its counter went backwards once
    created_ns BIGINT  NOT NULL,
    used_ns    BIGINT  NOT NULL DEFAULT 0,
    PRIMARY KEY (principal, credential)
);
CREATE UNIQUE INDEX passkey_credential ON passkey (credential);

CREATE TABLE oidc_identity (
    principal  TEXT   NOT NULL,
    tenant     TEXT   NOT NULL,
    issuer     TEXT   NOT NULL,
    subject    TEXT   NOT NULL,
    label      TEXT   NOT NULL, -- what the provider called the human, for people
    created_ns BIGINT NOT NULL,
    used_ns    BIGINT NOT NULL,
    PRIMARY KEY (tenant, issuer, subject)
);
CREATE INDEX oidc_identity_principal ON oidc_identity (principal);
CREATE TABLE oidc_group ( -- what a provider said at the last login, until then
    principal  TEXT   NOT NULL,
    issuer     TEXT   NOT NULL,
    group_name TEXT   NOT NULL,
    expires_ns BIGINT NOT NULL,
    PRIMARY KEY (principal, issuer, group_name)
);

CREATE TABLE pending_delegation (
    id         TEXT   NOT NULL PRIMARY KEY,
    issuer     TEXT   NOT NULL, -- the human whose proof is awaited
    agent      TEXT   NOT NULL,
    draft      BLOB   NOT NULL, -- the link without its proof
    shown      BLOB   NOT NULL, -- what else the human is to see
    asked_by   TEXT   NOT NULL,
    state      TEXT   NOT NULL, -- pending confirmed declined
    chain      BLOB,            -- digest of what it became
    created_ns BIGINT NOT NULL,
    expires_ns BIGINT NOT NULL
);
CREATE INDEX pending_delegation_issuer ON pending_delegation (issuer, state);

-- +goose Down
DROP TABLE pending_delegation;
DROP TABLE oidc_group;
DROP TABLE oidc_identity;
DROP TABLE passkey;
DROP TABLE passkey_user;
ALTER TABLE login_code DROP COLUMN method;
DROP INDEX session_principal;
ALTER TABLE session DROP COLUMN authenticated_ns;
ALTER TABLE session DROP COLUMN method;
