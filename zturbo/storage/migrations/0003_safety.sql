ALTER TABLE generations ADD COLUMN safety TEXT;  -- JSON: checker, threshold, scores, flagged; NULL where not checked
-- Until now every key that draws could leave the check out; new ones are asked for.
UPDATE keys SET scopes = scopes || ' safety:off' WHERE scopes LIKE '%model:image%';
