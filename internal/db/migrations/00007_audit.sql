-- +goose Up

-- The audit log (package localaudit) again: tiles instead of single hashes, and
-- people by pseudonyms. Nothing that was released wrote the tables before.
DROP TABLE audit_record;
DROP TABLE audit_hash;
DROP TABLE audit_head;

CREATE TABLE audit_record (
    leaf     INTEGER NOT NULL PRIMARY KEY, -- index in the tree, from 0
    id       BLOB    NOT NULL UNIQUE,
    checksum BIGINT  NOT NULL, -- the first 8 bytes of the leaf's hash
    body     BLOB    NOT NULL  -- canonical CBOR: the leaf
);
-- Which records of a bundle (256 leaves) have a term: who acted, what, and so on.
CREATE TABLE audit_posting (
    term   BIGINT NOT NULL, -- the first 8 bytes of a digest
    bundle BIGINT NOT NULL,
    bits   BLOB   NOT NULL, -- a bit a leaf, and 4 bytes of CRC
    PRIMARY KEY (term, bundle)
) WITHOUT ROWID;
CREATE TABLE audit_bundle (
    n      INTEGER NOT NULL PRIMARY KEY,
    oldest BIGINT  NOT NULL, -- the least and the greatest time of its records
    newest BIGINT  NOT NULL,
    checksum BIGINT NOT NULL -- of this row, as below
);

CREATE TABLE audit_tile ( -- C2SP tlog-tiles, of height 8
    level  INTEGER NOT NULL,
    n      BIGINT  NOT NULL,
    hashes BLOB    NOT NULL, -- 256 of 32 bytes; fewer at the right edge
    PRIMARY KEY (level, n)
);
CREATE TABLE audit_head (
    only  INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    size  BIGINT  NOT NULL,
    root  BLOB    NOT NULL,
    first BIGINT  NOT NULL, -- the oldest leaf that is still here
    checksum BIGINT NOT NULL
);
CREATE TABLE audit_front ( -- the queues that records come from
    id       BLOB   NOT NULL PRIMARY KEY,
    sequence BIGINT NOT NULL, -- of the last frame taken
    checksum BIGINT NOT NULL
);
CREATE TABLE audit_subject ( -- people; a row without a key is an erased person
    id         BLOB   NOT NULL PRIMARY KEY,
    principal  TEXT   UNIQUE, -- SPIFFE id
    sealed     BLOB,          -- the person's key, under the key-encryption key
    erased_ns  BIGINT NOT NULL DEFAULT 0
);

-- +goose Down
DROP TABLE audit_subject;
DROP TABLE audit_front;
DROP TABLE audit_head;
DROP TABLE audit_tile;
DROP TABLE audit_bundle;
DROP TABLE audit_posting;
DROP TABLE audit_record;
CREATE TABLE audit_record (
    leaf     BIGINT NOT NULL PRIMARY KEY,
    id       BLOB   NOT NULL UNIQUE,
    at_ns    BIGINT NOT NULL,
    tenant   TEXT   NOT NULL,
    actor    TEXT   NOT NULL,
    what     TEXT   NOT NULL,
    resource TEXT   NOT NULL,
    outcome  TEXT   NOT NULL,
    body     BLOB   NOT NULL
);
CREATE INDEX audit_record_actor ON audit_record (tenant, actor, at_ns);
CREATE INDEX audit_record_what ON audit_record (tenant, what, leaf);
CREATE TABLE audit_hash (
    position BIGINT NOT NULL PRIMARY KEY,
    hash     BLOB   NOT NULL
);
CREATE TABLE audit_head (
    only     INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    size     BIGINT  NOT NULL,
    sequence BIGINT  NOT NULL,
    position BIGINT  NOT NULL
);
INSERT INTO audit_head (only, size, sequence, position) VALUES (1, 0, 0, 0);
