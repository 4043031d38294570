// Command croft-cluster runs a real Kubernetes on this machine, with the
// PostgreSQL and the Redis that Croft needs beside it, from packages alone.
//
// Every subcommand may be repeated and may be interrupted: it looks at what is
// there and does what is missing. See README.md for the map.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const usage = `usage: cluster.sh COMMAND [--dir DIR]

  up [--without-policy]       services, control plane and a node with DNS and network policy
  down                        stop and remove all that lives in DIR
  services up|down            PostgreSQL and Redis alone
  control-plane up|down       etcd, API server and controller manager alone
    [--shipped-rates]         with controllers that ask as seldom as Kubernetes lets them unless told
  images load NAME=BINARY…    make croft/NAME:dev of a program and give it to the node
  images save NAME=BINARY…    make an image of a program and write it to FOLDER/NAME.tar, for a registry
    [--to FOLDER] [--repository croft] [--tag dev]
  env                         write DIR/env anew, with what lies in DIR/env.d
  status                      what is running
  tools [NAME…]               build what is missing of the tools, link them into DIR/bin
  built NAME                  whether a tool is built already
  schemas [--to FOLDER]       a JSON Schema a kind for kubeconform, of what kubectl get --raw /openapi/v2 says on standard input
  apt GROUP…                  install what is missing of Debian's packages: services node policy

DIR is target/croft in the repository unless told. DIR/env is made for sourcing.
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "croft-cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	options := flag.NewFlagSet("cluster.sh", flag.ContinueOnError)
	options.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	path := options.String("dir", filepath.Join(source(), "..", "..", "target", "croft"), "")
	withoutPolicy := options.Bool("without-policy", false, "")
	to := options.String("to", filepath.Join(source(), "..", "..", "target", "images"), "")
	repository := options.String("repository", "croft", "")
	tag := options.String("tag", "dev", "")
	shippedRates := options.Bool("shipped-rates", false, "")
	words, err := parse(options, args)
	if errors.Is(err, flag.ErrHelp) || len(words) == 0 || words[0] == "help" {
		options.Usage()
		return nil
	}
	if err != nil {
		return err
	}
	if words[0] == "apt" {
		return install(words[1:])
	}
	if words[0] == "schemas" {
		return writeSchemas(os.Stdin, *to)
	}
	if strings.Join(words[:min(len(words), 2)], " ") == "images save" {
		return saveImages(*to, *repository, *tag, words[2:])
	}
	d, err := openDir(*path)
	if err != nil {
		return err
	}
	if words[0] == "status" {
		return d.status()
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	switch command := strings.Join(words[:min(len(words), 2)], " "); {
	case command == "services up":
		return inTurn(func() error { return install([]string{"services"}) }, d.servicesUp)
	case command == "services down":
		return inTurn(d.servicesDown, d.tidy)
	case command == "control-plane up":
		if *shippedRates {
			return d.controlPlaneAlone(nil)
		}
		return d.controlPlaneAlone(quickRates)
	case command == "control-plane down":
		return inTurn(d.controlPlaneDown, d.tidy)
	case command == "images load":
		return d.loadImages(words[2:])
	case words[0] == "tools":
		return d.tools(words[1:])
	case words[0] == "built" && len(words) == 2:
		return isBuilt(words[1])
	case command == "up":
		return d.up(!*withoutPolicy)
	case command == "down":
		return d.down()
	case command == "env":
		return d.writeEnv()
	}
	options.Usage()
	return fmt.Errorf("no such command: %s", strings.Join(words, " "))
}

// parse allows flags before, between and after the words, which package flag doesn't.
func parse(options *flag.FlagSet, args []string) ([]string, error) {
	var words []string
	for {
		if err := options.Parse(args); err != nil {
			return nil, err
		}
		if options.NArg() == 0 {
			return words, nil
		}
		words = append(words, options.Arg(0))
		args = options.Args()[1:]
	}
}

// source is the folder of cluster.sh, where the modules to build lie.
func source() string {
	if folder := os.Getenv("CROFT_CLUSTER_SOURCE"); folder != "" {
		return folder
	}
	return "."
}
