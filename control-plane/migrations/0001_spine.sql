-- One schema for SQLite and PostgreSQL: TEXT, BIGINT and BLOB (BYTEA) only. Times are Unix seconds unless said otherwise.

-- Exactly one row.
CREATE TABLE mesh (
    id           BIGINT PRIMARY KEY CHECK (id = 1),
    trust_domain TEXT   NOT NULL,
    -- Grows by one with every change that agents can see.
    revision     BIGINT NOT NULL,
    -- A known text, sealed: proves that the key at hand is the key of this store.
    key_check    BLOB   NOT NULL
);

CREATE TABLE ca_keys (
    -- SHA-256 of the subject public key info, lower-case hex.
    id          TEXT   PRIMARY KEY,
    -- `root` or `issuing`.
    role        TEXT   NOT NULL,
    certificate BLOB   NOT NULL,
    -- PKCS#8, sealed; erased when the key is replaced.
    sealed_key  BLOB,
    created     BIGINT NOT NULL
);

CREATE TABLE tokens (
    -- SHA-256 of the secret.
    hash     BLOB   PRIMARY KEY,
    identity TEXT   NOT NULL,
    created  BIGINT NOT NULL,
    expires  BIGINT NOT NULL,
    used_at  BIGINT
);

-- Services that an identity may back.
CREATE TABLE grants (
    identity TEXT NOT NULL,
    service  TEXT NOT NULL,
    PRIMARY KEY (identity, service)
);

CREATE TABLE certificates (
    serial      TEXT   PRIMARY KEY,
    identity    TEXT   NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    evidence    TEXT   NOT NULL,
    issuer      TEXT   NOT NULL,
    agent_id    TEXT   NOT NULL,
    -- Serial of the certificate that was renewed into this one's place.
    replaced_by TEXT
);
CREATE INDEX certificates_by_end ON certificates (not_after);

CREATE TABLE policies (
    namespace TEXT   NOT NULL,
    name      TEXT   NOT NULL,
    json      TEXT   NOT NULL,
    revision  BIGINT NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE agents (
    id        TEXT   PRIMARY KEY,
    identity  TEXT   NOT NULL,
    version   TEXT   NOT NULL,
    -- JSON: the services it backs, with address and ports.
    backings  TEXT   NOT NULL,
    -- 1 while its endpoints are part of the mesh.
    present   BIGINT NOT NULL,
    last_seen BIGINT NOT NULL,
    revision  BIGINT NOT NULL
);

CREATE TABLE decisions (
    seq         INTEGER PRIMARY KEY,
    request_id  TEXT   NOT NULL,
    destination TEXT   NOT NULL,
    denied      BIGINT NOT NULL,
    -- Encoded `DecisionRecord`.
    record      BLOB   NOT NULL
);
CREATE INDEX decisions_by_request ON decisions (request_id);
CREATE INDEX decisions_by_denied ON decisions (denied, seq);

CREATE TABLE audit (
    seq      INTEGER PRIMARY KEY,
    time     BIGINT NOT NULL,
    -- User id of the operator's process.
    uid      BIGINT NOT NULL,
    call     TEXT   NOT NULL,
    subject  TEXT   NOT NULL,
    revision BIGINT NOT NULL
);
