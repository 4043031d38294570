package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// redis is a Redis of the run's own, behind a password.
func (d Dir) redis(p Ports, s Secrets, addresses []string) (Process, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return Process{}, fmt.Errorf("Redis is not installed; `cluster.sh apt services` installs it")
	}
	credential, err := credentialOf("redis")
	if err != nil {
		return Process{}, err
	}
	folder := d.at("redis")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return Process{}, err
	}
	if err := own(folder, credential); err != nil {
		return Process{}, err
	}
	settings := fmt.Sprintf(`bind %s
port %d
requirepass %s
dir %s
daemonize no
save ""
appendonly yes
appendfsync everysec
set-proc-title no
maxmemory 512mb
maxmemory-policy noeviction
`, strings.Join(addresses, " "), p.Redis, s.Redis, folder)
	path := d.at("redis", "redis.conf")
	if err := writeOwned(path, settings, credential); err != nil {
		return Process{}, err
	}
	return Process{
		Name:   "redis",
		Args:   []string{program, path},
		User:   credential,
		Files:  []string{path},
		Ready:  func() error { return pingRedis(fmt.Sprintf("127.0.0.1:%d", p.Redis), s.Redis) },
		Within: patience,
	}, nil
}

// pingRedis speaks the three lines of the protocol that it takes to see that
// the server is up, has loaded its data and knows our password.
func pingRedis(address, password string) error {
	connection, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(connection, "AUTH %s\r\nPING\r\n", password); err != nil {
		return err
	}
	answers := bufio.NewReader(connection)
	for _, expected := range []string{"+OK", "+PONG"} {
		line, err := answers.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) != expected {
			return fmt.Errorf("redis answers %q", strings.TrimSpace(line))
		}
	}
	return nil
}
