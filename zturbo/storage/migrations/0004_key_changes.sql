ALTER TABLE keys ADD COLUMN updated_ms INTEGER;  -- NULL where its owner never changed it
