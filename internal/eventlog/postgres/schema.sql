-- The events themselves. Rows are only ever added, by one writer, which gives seq and ver without a gap.
CREATE TABLE pinnace_event (
  seq    bigint  PRIMARY KEY,
  stream text    COLLATE "C" NOT NULL,
  ver    bigint  NOT NULL,
  type   text    COLLATE "C" NOT NULL,
  tv     integer NOT NULL,
  at     bigint  NOT NULL,
  actor  text    COLLATE "C" NOT NULL,
  idem   text    COLLATE "C",
  data   bytea   NOT NULL,
  hash   bytea   NOT NULL
);
-- Payloads are short and mostly read whole: compressing them would cost more than it saves.
ALTER TABLE pinnace_event ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE pinnace_meta (
  k text PRIMARY KEY,
  v bytea NOT NULL
);

-- Who may write. Every claim raises epoch; a commit by a writer with another epoch stores nothing.
CREATE TABLE pinnace_lease (
  one    integer PRIMARY KEY CHECK (one = 1),
  epoch  bigint  NOT NULL,
  holder text    NOT NULL,
  until  timestamptz NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE pinnace_checkpoint (
  seq           bigint  PRIMARY KEY,
  hash          bytea   NOT NULL,
  at            bigint  NOT NULL,
  state_version bigint  NOT NULL,
  state         bytea   NOT NULL,
  key           bytea   NOT NULL,
  sig           bytea   NOT NULL
);

INSERT INTO pinnace_lease (one, epoch, holder, until) VALUES (1, 0, '', 'epoch');
