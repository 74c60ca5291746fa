-- Every state of every policy, so that each revision can be had back.

CREATE TABLE policy_history (
    namespace TEXT   NOT NULL,
    name      TEXT   NOT NULL,
    revision  BIGINT NOT NULL,
    -- NULL: deleted at this revision.
    json      TEXT,
    PRIMARY KEY (namespace, name, revision)
);
INSERT INTO policy_history (namespace, name, revision, json) SELECT namespace, name, revision, json FROM policies;
