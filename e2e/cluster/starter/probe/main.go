// Command probe tries the network from inside a pod and answers with its exit code.
//
//	probe connect HOST:PORT TIMEOUT   0 when a TCP connection opens in time
//	probe listen PORT                 accepts, says hello, closes; until it is ended
//	probe model PORT                  plays a model provider and an MCP server, until it is ended
//	probe resolve NAME [TIMEOUT]      0 and the addresses when the name has any
//	probe sleep                       until it is ended
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch {
	case verb == "connect" && len(args) == 2:
		return connect(args[0], args[1])
	case verb == "listen" && len(args) == 1:
		return listen(args[0])
	case verb == "model" && len(args) == 1:
		return model(args[0])
	case verb == "resolve" && len(args) == 1:
		return resolve(args[0], "5s")
	case verb == "resolve" && len(args) == 2:
		return resolve(args[0], args[1])
	case verb == "sleep" && len(args) == 0:
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGINT, syscall.SIGTERM)
		<-told
		return nil
	}
	return fmt.Errorf("usage: probe connect HOST:PORT TIMEOUT | listen PORT | model PORT | resolve NAME [TIMEOUT] | sleep")
}

func connect(address, timeout string) error {
	within, err := time.ParseDuration(timeout)
	if err != nil {
		return err
	}
	connection, err := net.DialTimeout("tcp", address, within)
	if err != nil {
		return err
	}
	fmt.Println("open", address)
	return connection.Close()
}

func listen(port string) error {
	// As process 1 of a container it gets no default action for a signal.
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGINT, syscall.SIGTERM)
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		<-told
		os.Exit(0)
	}()
	host, _ := os.Hostname()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Println("from", connection.RemoteAddr())
		_ = connection.SetDeadline(time.Now().Add(time.Second))
		// Looks like HTTP, so that curl and readiness probes are content as well.
		fmt.Fprintf(connection, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s\n", len(host)+1, host)
		_ = connection.(*net.TCPConn).CloseWrite()
		_, _ = connection.Read(make([]byte, 4096))
		_ = connection.Close()
	}
}

func resolve(name, timeout string) error {
	within, err := time.ParseDuration(timeout)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(bounded, name)
	if err != nil {
		return err
	}
	fmt.Println(strings.Join(addresses, " "))
	return nil
}
