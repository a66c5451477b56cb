-- Whether an operator is a human: some rules want one.

ALTER TABLE operators ADD COLUMN kind TEXT NOT NULL DEFAULT 'person' CHECK (kind IN ('person', 'automation'));
