-- JSON: the services that the bearer may back. Granted when the token is redeemed, not before.
ALTER TABLE tokens ADD COLUMN services TEXT NOT NULL DEFAULT '[]';
