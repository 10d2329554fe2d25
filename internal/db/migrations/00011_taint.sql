-- +goose Up

-- Sessions that have read what looks like a prompt injection (package injection).
CREATE TABLE session_taint (
    session  TEXT   PRIMARY KEY, -- run:ID, or the agent's id
    cause    TEXT   NOT NULL,
    since_ns BIGINT NOT NULL,
    until_ns BIGINT NOT NULL     -- 0 until the run ends
);
