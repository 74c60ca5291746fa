-- Keys that sign tokens (JWT-SVIDs): every replica's.
CREATE TABLE jwt_keys (
    -- Named by `kid`.
    id         TEXT   PRIMARY KEY,
    -- P-256 point, uncompressed.
    point      BLOB   NOT NULL,
    -- PKCS#8, sealed.
    sealed_key BLOB   NOT NULL,
    -- Published from when it is made, signs from here to the next one's time.
    signs_from BIGINT NOT NULL
);
