-- +goose Up

-- Identity (package localnhi).
CREATE TABLE signing_key (
    kid        TEXT    NOT NULL PRIMARY KEY,
    owner      TEXT    NOT NULL, -- a SPIFFE id, or a role of the platform
    role       TEXT    NOT NULL, -- root, checkpoint, token, principal
    algorithm  TEXT    NOT NULL,
    public_key BLOB    NOT NULL,
    sealed     BLOB    NOT NULL, -- the seed, under the key-encryption key
    created_ns BIGINT  NOT NULL
);
CREATE UNIQUE INDEX signing_key_owner ON signing_key (owner, role);

CREATE TABLE principal (
    id         TEXT    NOT NULL PRIMARY KEY, -- SPIFFE id
    tenant     TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    epoch      BIGINT  NOT NULL DEFAULT 0, -- raised by each revocation
    active     INTEGER NOT NULL DEFAULT 1,
    leaf       BLOB,                         -- digest of its newest delegation link
    created_ns BIGINT  NOT NULL
);
CREATE INDEX principal_tenant ON principal (tenant, kind, name);

CREATE TABLE membership (
    principal  TEXT NOT NULL REFERENCES principal (id),
    group_name TEXT NOT NULL,
    PRIMARY KEY (principal, group_name)
);

CREATE TABLE delegation_link (
    digest  BLOB NOT NULL PRIMARY KEY, -- of the link's body
    subject TEXT NOT NULL,
    parent  BLOB, -- digest of the link above; NULL at a human's
    body    BLOB NOT NULL
);
CREATE INDEX delegation_link_subject ON delegation_link (subject);

CREATE TABLE revocation (
    epoch     INTEGER PRIMARY KEY,
    principal TEXT    NOT NULL,
    at_ns     BIGINT  NOT NULL
);

-- Human sessions (package console).
CREATE TABLE login_code (
    digest     BLOB    NOT NULL PRIMARY KEY,
    principal  TEXT    NOT NULL,
    expires_ns BIGINT  NOT NULL,
    used       INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE session (
    digest     BLOB   NOT NULL PRIMARY KEY,
    principal  TEXT   NOT NULL,
    csrf       TEXT   NOT NULL,
    expires_ns BIGINT NOT NULL
);

-- Ordered time (package localconsensus).
CREATE TABLE clock (
    name    TEXT   NOT NULL PRIMARY KEY,
    term    BIGINT NOT NULL,
    mark_ns BIGINT NOT NULL -- no stamp was ever later than this
);
CREATE TABLE ordered_event (
    id       BLOB   NOT NULL PRIMARY KEY,
    logical  BIGINT NOT NULL,
    physical BIGINT NOT NULL,
    source   TEXT   NOT NULL,
    node     TEXT   NOT NULL
);

-- The audit log (package localaudit): rows, hashes and head change together.
CREATE TABLE audit_record (
    leaf     BIGINT NOT NULL PRIMARY KEY, -- index in the tree, from 0
    id       BLOB   NOT NULL UNIQUE,
    at_ns    BIGINT NOT NULL,
    tenant   TEXT   NOT NULL,
    actor    TEXT   NOT NULL,
    what     TEXT   NOT NULL,
    resource TEXT   NOT NULL,
    outcome  TEXT   NOT NULL,
    body     BLOB   NOT NULL -- canonical CBOR: the leaf
);
CREATE INDEX audit_record_actor ON audit_record (tenant, actor, at_ns);
CREATE INDEX audit_record_what ON audit_record (tenant, what, leaf);
CREATE TABLE audit_hash (
    position BIGINT NOT NULL PRIMARY KEY, -- of x/mod/sumdb/tlog
    hash     BLOB   NOT NULL
);
CREATE TABLE audit_head (
    only     INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    size     BIGINT  NOT NULL,
    sequence BIGINT  NOT NULL, -- of the last frame taken from the front
    position BIGINT  NOT NULL  -- where the next frame begins
);
INSERT INTO audit_head (only, size, sequence, position) VALUES (1, 0, 0, 0);

-- Oversight.
CREATE TABLE oversight_request (
    id              TEXT    NOT NULL PRIMARY KEY,
    tenant          TEXT    NOT NULL,
    digest          BLOB    NOT NULL UNIQUE, -- what a consent is bound to
    identity        BLOB    NOT NULL, -- digest of what makes two requests the same
    idempotency_key TEXT    NOT NULL,
    agent           TEXT    NOT NULL,
    on_behalf_of    TEXT    NOT NULL,
    body            BLOB    NOT NULL, -- canonical request, with the arguments to show
    approvers       TEXT    NOT NULL, -- group, or "principal"
    state           TEXT    NOT NULL, -- pending approved denied expired consumed
    created_ns      BIGINT  NOT NULL,
    expires_ns      BIGINT  NOT NULL,
    decided_by      TEXT    NOT NULL DEFAULT '',
    decided_ns      BIGINT  NOT NULL DEFAULT 0,
    channel         TEXT    NOT NULL DEFAULT '',
    reason          TEXT    NOT NULL DEFAULT '',
    finished        INTEGER NOT NULL DEFAULT 0 -- the outcome of the action is recorded
);
CREATE INDEX oversight_request_state ON oversight_request (tenant, state, created_ns);
CREATE INDEX oversight_request_identity ON oversight_request (identity, state);

-- Sandboxes.
CREATE TABLE sandbox_run (
    id         TEXT   NOT NULL PRIMARY KEY,
    agent      TEXT   NOT NULL,
    isolation  TEXT   NOT NULL,
    pid        BIGINT NOT NULL, -- of its supervisor
    pid_start  TEXT   NOT NULL, -- tells it from a later process with its number
    started_ns BIGINT NOT NULL,
    ended_ns   BIGINT NOT NULL DEFAULT 0
);

-- Quotas (package metering).
CREATE TABLE quota (
    agent     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    amount    BIGINT NOT NULL,
    window_ns BIGINT NOT NULL,
    PRIMARY KEY (agent, action)
);

-- +goose Down
DROP TABLE quota;
DROP TABLE sandbox_run;
DROP TABLE oversight_request;
DROP TABLE audit_head;
DROP TABLE audit_hash;
DROP TABLE audit_record;
DROP TABLE ordered_event;
DROP TABLE clock;
DROP TABLE session;
DROP TABLE login_code;
DROP TABLE revocation;
DROP TABLE delegation_link;
DROP TABLE membership;
DROP TABLE principal;
DROP TABLE signing_key;
