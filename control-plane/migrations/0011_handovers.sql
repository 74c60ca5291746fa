-- From one mounted CA to the next: how far each replica is.
CREATE TABLE ca_handovers (
    replica       TEXT   PRIMARY KEY,
    phase         TEXT   NOT NULL,
    old_root      TEXT   NOT NULL,
    new_root      TEXT   NOT NULL,
    started       BIGINT NOT NULL,
    phase_started BIGINT NOT NULL,
    -- 1: agents that are not connected are not waited for.
    skip_away     BIGINT NOT NULL,
    -- DER, one after the other: the CA that goes, what it chains to, its root last. NULL when it has gone.
    chain         BLOB,
    -- Its key, sealed: its files have been replaced. NULL when it has gone.
    sealed_key    BLOB
);
