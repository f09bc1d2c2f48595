-- The events themselves. Rows are only ever added, by one writer, which gives seq and ver without a gap.
CREATE TABLE event (
  seq    INTEGER PRIMARY KEY,
  stream TEXT    NOT NULL,
  ver    INTEGER NOT NULL,
  type   TEXT    NOT NULL,
  tv     INTEGER NOT NULL,
  at     INTEGER NOT NULL,
  actor  TEXT    NOT NULL,
  idem   TEXT,
  data   BLOB    NOT NULL,
  hash   BLOB    NOT NULL
) STRICT;

CREATE TABLE meta (
  k TEXT PRIMARY KEY,
  v BLOB NOT NULL
) STRICT;

-- Who may write. Every opening raises epoch; a writer with another epoch is refused.
CREATE TABLE lease (
  one    INTEGER PRIMARY KEY CHECK (one = 1),
  epoch  INTEGER NOT NULL,
  holder TEXT    NOT NULL,
  until  INTEGER NOT NULL
) STRICT;

INSERT INTO lease (one, epoch, holder, until) VALUES (1, 0, '', 0);
