-- How many fronts in a row were lost with a turn, each before it had stored a word of it: what kills one would kill them all, one after the other.
--
-- The count stands for as long as the session's last event is the one that it was begun behind; nothing sets it back. Fronts of the release
-- before know nothing of it and leave it as it is. Both columns are added without a look at the table.
alter table leases
    add column losses integer not null default 0,
    add column lost_behind_seq bigint;
