-- Who may do what over the operators' port, and who did.
CREATE TABLE operators (
    name          TEXT   PRIMARY KEY,
    -- `viewer`, `editor` or `admin`.
    role          TEXT   NOT NULL,
    created       BIGINT NOT NULL,
    -- SHA-256 of the login token's secret; NULL once it is used.
    login_hash    BLOB,
    login_expires BIGINT NOT NULL
);

CREATE TABLE audit_log (
    seq      INTEGER PRIMARY KEY,
    time     BIGINT NOT NULL,
    who      TEXT   NOT NULL,
    role     TEXT   NOT NULL,
    call     TEXT   NOT NULL,
    subject  TEXT   NOT NULL,
    revision BIGINT NOT NULL,
    outcome  TEXT   NOT NULL,
    origin   TEXT   NOT NULL
);
