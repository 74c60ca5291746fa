-- Several control planes on one store: who they are, what each holds alone, and what agents said to each of them.

-- Which replica issued it.
ALTER TABLE certificates ADD COLUMN replica TEXT NOT NULL DEFAULT '';
-- Whose it is; empty for what all replicas share.
ALTER TABLE ca_keys ADD COLUMN replica TEXT NOT NULL DEFAULT '';

CREATE TABLE replicas (
    id          TEXT   PRIMARY KEY,
    -- Made anew at every start: two that run under one id are told apart.
    incarnation TEXT   NOT NULL,
    -- `host:port` that agents are told.
    address     TEXT   NOT NULL,
    version     TEXT   NOT NULL,
    -- Unix milliseconds by the store's clock.
    started     BIGINT NOT NULL,
    last_seen   BIGINT NOT NULL
);

-- What must be done by one replica at a time.
CREATE TABLE leases (
    name    TEXT   PRIMARY KEY,
    -- Incarnation of a replica.
    holder  TEXT   NOT NULL,
    -- Grows by one each time that the lease passes to another holder. Writes under a lease check it.
    token   BIGINT NOT NULL,
    -- Unix milliseconds by the store's clock.
    expires BIGINT NOT NULL
);

-- Agents with an open stream, and what is in force there.
CREATE TABLE sessions (
    agent_id        TEXT   PRIMARY KEY,
    replica         TEXT   NOT NULL,
    epoch           BIGINT NOT NULL,
    in_force        BIGINT NOT NULL,
    -- Revision and reason of its last refusal; revision 0 for none.
    refused         BIGINT NOT NULL,
    reason          TEXT   NOT NULL,
    considered      BIGINT NOT NULL,
    answering       BIGINT NOT NULL,
    serial          TEXT   NOT NULL,
    certificate_end BIGINT NOT NULL,
    last_seen       BIGINT NOT NULL,
    -- Counts orders to renew its certificate, and those that were passed on.
    renewals_asked  BIGINT NOT NULL DEFAULT 0,
    renewals_passed BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX sessions_by_replica ON sessions (replica);
