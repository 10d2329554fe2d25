-- +goose Up

-- Secrets (package localnhi). The seal binds tenant, name, version, owner and
-- agents: a row cannot be moved, nor its grant widened, without the
-- key-encryption key.
CREATE TABLE secret (
    tenant  TEXT   NOT NULL,
    name    TEXT   NOT NULL,
    version BIGINT NOT NULL, -- counts on, also after a removal
    owner   TEXT   NOT NULL, -- SPIFFE id
    agents  TEXT   NOT NULL, -- SPIFFE ids, sorted, a space between; '' means that policy alone decides
    kek     TEXT   NOT NULL, -- id of the key-encryption key
    sealed  BLOB,            -- NULL once it is removed
    set_ns  BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- +goose Down
DROP TABLE secret;
