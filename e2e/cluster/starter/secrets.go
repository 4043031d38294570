package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

// Secrets are the passwords of the run, made once. They are hexadecimal, so
// that they can stand in a URL, a shell and a configuration file unquoted.
type Secrets struct {
	PostgresAdmin, PostgresFront, Redis string
}

func (d Dir) secrets() (Secrets, error) {
	choosing.Lock()
	defer choosing.Unlock()
	var s Secrets
	path := d.at("secrets.json")
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &s); err != nil {
			return s, fmt.Errorf("%s is damaged, take the run down: %w", path, err)
		}
		return s, nil
	}
	s = Secrets{PostgresAdmin: secret(), PostgresFront: secret(), Redis: secret()}
	text, err := json.Marshal(s)
	if err != nil {
		return s, err
	}
	return s, writeFile(path, text, 0o600)
}

func secret() string {
	var random [16]byte
	_, _ = rand.Read(random[:]) // It never fails.
	return hex.EncodeToString(random[:])
}
