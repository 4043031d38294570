package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	postgresAdmin    = "croft_admin"
	postgresFront    = "croft_front"
	postgresDatabase = "croft"
)

// postgres is a PostgreSQL of the run's own, with nothing made faster at the
// price of truth: fsync stays on, because Croft's promise is what survives a crash.
func (d Dir) postgres(p Ports, s Secrets, addresses []string) (Process, error) {
	programs, err := postgresPrograms()
	if err != nil {
		return Process{}, err
	}
	credential, err := credentialOf("postgres")
	if err != nil {
		return Process{}, err
	}
	data, sockets := d.at("postgres", "data"), d.short("postgres")
	if err := d.initPostgres(programs, data, sockets, s, credential); err != nil {
		return Process{}, err
	}
	settings := fmt.Sprintf(`# Written anew at every start.
listen_addresses = '%s'
port = %d
unix_socket_directories = '%s'
max_connections = 300
shared_buffers = 128MB
fsync = on
synchronous_commit = on
password_encryption = scram-sha-256
log_min_duration_statement = 1000
log_line_prefix = '%%m [%%p] %%u@%%d '
timezone = 'UTC'
`, strings.Join(addresses, ","), p.Postgres, sockets)
	// Pods come from the pods' range, the node itself from the bridge's.
	access := fmt.Sprintf(`local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host all all %s scram-sha-256
host all all %s scram-sha-256
`, nodeCIDR, podCIDR)
	for path, text := range map[string]string{"postgresql.auto.conf": settings, "pg_hba.conf": access} {
		if err := writeOwned(filepath.Join(data, path), text, credential); err != nil {
			return Process{}, err
		}
	}
	return Process{
		Name:  "postgres",
		Args:  []string{filepath.Join(programs, "postgres"), "-D", data},
		User:  credential,
		Files: []string{filepath.Join(data, "postgresql.auto.conf"), filepath.Join(data, "pg_hba.conf")},
		Ready: func() error {
			return onceReady(d.at("postgres", "provisioned"), p.Postgres, func() error { return d.provisionPostgres(programs, p, s) })
		},
		Within: patience,
		Stop:   syscall.SIGINT, // "fast": don't wait for clients, do write everything.
	}, nil
}

// initPostgres makes the empty database cluster, once.
func (d Dir) initPostgres(programs, data, sockets string, s Secrets, credential *syscall.Credential) error {
	for _, folder := range []string{d.at("postgres"), sockets} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := own(folder, credential); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err == nil {
		return nil
	}
	if err := os.RemoveAll(data); err != nil { // What an interrupted attempt left.
		return err
	}
	password := d.at("postgres", "password")
	if err := writeOwned(password, s.PostgresAdmin, credential); err != nil {
		return err
	}
	defer os.Remove(password)
	unfinished := data + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	command := exec.Command(filepath.Join(programs, "initdb"), "-D", unfinished, "-U", postgresAdmin, "--pwfile", password,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions", "--no-sync")
	command.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	command.Dir = d.at("postgres")
	if text, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb failed (%w); can the user postgres enter %s? It says: %s", err, d.Path, strings.TrimSpace(string(text)))
	}
	return os.Rename(unfinished, data)
}

// provisionPostgres makes the database and the role that the front logs in
// with. That role is nobody: what it may do, the migrations say.
func (d Dir) provisionPostgres(programs string, p Ports, s Secrets) error {
	psql := func(database string, statements ...string) (string, error) {
		args := []string{"-XAtq", "-v", "ON_ERROR_STOP=1"}
		for _, statement := range statements {
			args = append(args, "-c", statement)
		}
		command := exec.Command(filepath.Join(programs, "psql"), append(args, "host=127.0.0.1 port="+strconv.Itoa(p.Postgres)+
			" user="+postgresAdmin+" dbname="+database+" connect_timeout=2")...)
		command.Env = append(os.Environ(), "PGPASSWORD="+s.PostgresAdmin)
		text, err := command.CombinedOutput()
		if err != nil {
			err = errors.New(strings.TrimSpace(string(text)))
		}
		return strings.TrimSpace(string(text)), err
	}
	if there, err := psql("postgres", "select 1 from pg_roles where rolname = '"+postgresFront+"'"); err != nil {
		return err
	} else if there == "" {
		if _, err := psql("postgres", "create role "+postgresFront+" login nosuperuser nocreatedb nocreaterole noinherit password '"+s.PostgresFront+"'"); err != nil {
			return err
		}
	}
	if there, err := psql("postgres", "select 1 from pg_database where datname = '"+postgresDatabase+"'"); err != nil {
		return err
	} else if there == "" {
		if _, err := psql("postgres", "create database "+postgresDatabase+" owner "+postgresAdmin); err != nil {
			return err
		}
	}
	return nil
}

// postgresPrograms finds the folder of the newest PostgreSQL; Debian keeps it off PATH.
func postgresPrograms() (string, error) {
	folders, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	sort.Slice(folders, func(a, b int) bool { return postgresVersion(folders[a]) > postgresVersion(folders[b]) })
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, "postgres")); err == nil {
			return folder, nil
		}
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("PostgreSQL is not installed; `cluster.sh apt services` installs it")
}

func postgresVersion(folder string) int {
	version, _ := strconv.Atoi(filepath.Base(filepath.Dir(folder)))
	return version
}

// onceReady is readiness with a duty: the duty is done once the port answers
// and is never done again, so that a look at a running system stays quick.
func onceReady(done string, port int, duty func() error) error {
	connection, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		return err
	}
	_ = connection.Close()
	if _, err := os.Stat(done); err == nil {
		return nil
	}
	if err := duty(); err != nil {
		return err
	}
	return writeFile(done, nil, 0o644)
}

// credentialOf is the user to run as: root must not run a database. Someone
// who isn't root runs it as themselves.
func credentialOf(name string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	account, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("there is no user %s; `cluster.sh apt services` installs what makes it", name)
	}
	uid, _ := strconv.ParseUint(account.Uid, 10, 32)
	gid, _ := strconv.ParseUint(account.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func own(path string, credential *syscall.Credential) error {
	if credential == nil {
		return nil
	}
	return os.Chown(path, int(credential.Uid), int(credential.Gid))
}

func writeOwned(path, text string, credential *syscall.Credential) error {
	if err := writeFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return own(path, credential)
}
