-- +goose Up

-- Limits (package metering): several quotas for one action, for one human, and
-- rates; and what is lent to other nodes.
CREATE TABLE quota_limit (
    agent     TEXT   NOT NULL,
    human     TEXT   NOT NULL, -- '' for whomever it acts
    action    TEXT   NOT NULL, -- '*' for all
    window_ns BIGINT NOT NULL,
    amount    BIGINT NOT NULL,
    PRIMARY KEY (agent, human, action, window_ns)
);
INSERT INTO quota_limit (agent, human, action, window_ns, amount) SELECT agent, '', action, window_ns, amount FROM quota;
DROP TABLE quota;
CREATE TABLE rate_limit (
    agent     TEXT   NOT NULL,
    human     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    units     BIGINT NOT NULL, -- in each period
    period_ns BIGINT NOT NULL,
    burst     BIGINT NOT NULL,
    PRIMARY KEY (agent, human, action)
);
CREATE TABLE quota_lease (
    agent     TEXT   NOT NULL,
    human     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    window_ns BIGINT NOT NULL,
    start_ns  BIGINT NOT NULL, -- of the window that lent is of
    lent      BIGINT NOT NULL,
    PRIMARY KEY (agent, human, action, window_ns)
);

-- +goose Down
CREATE TABLE quota (
    agent     TEXT   NOT NULL,
    action    TEXT   NOT NULL,
    amount    BIGINT NOT NULL,
    window_ns BIGINT NOT NULL,
    PRIMARY KEY (agent, action)
);
INSERT INTO quota (agent, action, amount, window_ns) SELECT agent, action, MIN(amount), MIN(window_ns) FROM quota_limit WHERE human = '' GROUP BY agent, action;
DROP TABLE quota_lease;
DROP TABLE rate_limit;
DROP TABLE quota_limit;
