-- Services that an agent's program calls, one after the other with a space between: whom a change of a route concerns.
ALTER TABLE sessions ADD COLUMN wants TEXT NOT NULL DEFAULT '';
