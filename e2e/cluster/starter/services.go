package main

import "time"

// servicesUp brings up what Croft keeps its state in: PostgreSQL and Redis.
func (d Dir) servicesUp() error {
	ports, err := d.ports()
	if err != nil {
		return err
	}
	secrets, err := d.secrets()
	if err != nil {
		return err
	}
	// Without a node there is nobody but this machine to listen to.
	addresses := []string{"127.0.0.1"}
	if d.ownsNode() {
		addresses = append(addresses, nodeAddress)
	}
	already := d.running("postgres") && d.running("redis")
	bring := func(describe func(Ports, Secrets, []string) (Process, error)) func() error {
		return func() error {
			process, err := describe(ports, secrets, addresses)
			if err != nil {
				return err
			}
			return d.run(process)
		}
	}
	if err := together(bring(d.postgres), bring(d.redis)); err != nil {
		return err
	}
	if !already {
		say("PostgreSQL on 127.0.0.1:%d and Redis on 127.0.0.1:%d are up", ports.Postgres, ports.Redis)
	}
	return d.writeEnv()
}

// servicesDown ends them and removes what they stored.
func (d Dir) servicesDown() error {
	d.stopAll(20*time.Second, "postgres", "redis")
	return d.forget("postgres", "redis", "secrets.json")
}
