-- Changes of policies name whoever made them as the log of calls does.
ALTER TABLE audit ADD COLUMN who TEXT NOT NULL DEFAULT '';
UPDATE audit SET who = CASE WHEN uid = 65534 THEN 'an operator' ELSE 'uid ' || uid END;
ALTER TABLE audit DROP COLUMN uid;
