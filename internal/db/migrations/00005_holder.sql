-- +goose Up

-- Which node has a PostgreSQL database to itself (package db). A node that ends
-- in order removes the row.
CREATE TABLE database_holder (
    one     INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    token   TEXT    NOT NULL, -- of one life of a node; who writes must have it
    machine TEXT    NOT NULL, -- boot and file by which the next can know that this one is dead
    name    TEXT    NOT NULL  -- for people
);

-- +goose Down
DROP TABLE database_holder;
