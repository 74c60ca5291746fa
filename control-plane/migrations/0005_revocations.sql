-- Certificates and identities that nobody believes any more.
CREATE TABLE revocations (
    -- Serial number, lower-case hex, or SPIFFE ID.
    subject  TEXT   PRIMARY KEY,
    -- Whose certificate it is, or the subject itself.
    identity TEXT   NOT NULL,
    reason   TEXT   NOT NULL,
    created  BIGINT NOT NULL,
    -- End of the certificate, when nobody believes it anyway; NULL for an identity, which stays until it is undone.
    ends     BIGINT
);
