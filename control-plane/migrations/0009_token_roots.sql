-- Id of the root that a join token names.
ALTER TABLE tokens ADD COLUMN root TEXT NOT NULL DEFAULT '';
UPDATE tokens SET root = coalesce((SELECT max(id) FROM ca_keys WHERE active = 1), '');
