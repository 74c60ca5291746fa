-- Several roots at a time, and how far a change from one to another is.

-- Id of the root that it is below of; a root's own id.
ALTER TABLE ca_keys ADD COLUMN root TEXT NOT NULL DEFAULT '';
-- Roots: 1 while it is in the trust bundle.
ALTER TABLE ca_keys ADD COLUMN trusted BIGINT NOT NULL DEFAULT 0;
-- Roots: 1 for the one that signs issuing CAs.
ALTER TABLE ca_keys ADD COLUMN active BIGINT NOT NULL DEFAULT 0;
UPDATE ca_keys SET trusted = 1, active = 1, root = id WHERE role = 'root' AND sealed_key IS NOT NULL;
UPDATE ca_keys SET root = coalesce((SELECT max(id) FROM ca_keys AS roots WHERE roots.active = 1), '') WHERE role = 'issuing';

-- Id of the root that it chains to.
ALTER TABLE certificates ADD COLUMN root TEXT NOT NULL DEFAULT '';
UPDATE certificates SET root = coalesce((SELECT max(id) FROM ca_keys WHERE active = 1), '');

-- The last change of the trust anchor, if there was one.
CREATE TABLE ca_rotation (
    id            BIGINT PRIMARY KEY CHECK (id = 1),
    phase         TEXT   NOT NULL,
    -- The phase that it goes on to by itself.
    goal          TEXT   NOT NULL,
    old_root      TEXT   NOT NULL,
    new_root      TEXT   NOT NULL,
    started       BIGINT NOT NULL,
    phase_started BIGINT NOT NULL,
    -- Revision of the trust bundle that agents must acknowledge.
    revision      BIGINT NOT NULL,
    -- 1: agents that are not connected are not waited for.
    skip_away     BIGINT NOT NULL
);
