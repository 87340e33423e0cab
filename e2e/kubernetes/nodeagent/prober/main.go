// prober is the workload of the node agent's tests. `prober probe` is an app that tries from its first instruction on to talk around the mesh,
// and writes down each time that what it sees changes; `prober sidecar` stands in for Envoy: it takes what the kernel redirects to
// it and answers kubelet's proof (ports 15098 and 15099) by the same rules. No mesh is needed, so a test sees the node agent's work alone.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "probe":
		err = probe(os.Args[2:])
	case len(os.Args) > 1 && os.Args[1] == "sidecar":
		err = sidecar()
	default:
		err = fmt.Errorf("usage: prober probe [--until WHAT] [--each DURATION] HOST:PORT... | sidecar")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prober: "+err.Error())
		os.Exit(1)
	}
}

// What a listener says, so that a connection shows where it ended.
const (
	outside = "outside" // the test's listener, beyond the pod: the connection was not redirected
	taken   = "sidecar" // it was redirected
)

// An app tries often in its first second, and later seldom: many of them run on one machine.
const (
	eager = 10 * time.Millisecond
	calm  = 200 * time.Millisecond
)

// probe connects over and over, and prints "UNIXNANO TARGET WHAT" for the first attempt at each target and whenever the outcome changes.
func probe(args []string) error {
	f := flag.NewFlagSet("probe", flag.ContinueOnError)
	until := f.String("until", "", "end with success as soon as this is what a connection sees (default: on SIGTERM)")
	each := f.Duration("each", calm, "how often to try after the first second")
	if err := f.Parse(args); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	began, tick := time.Now(), time.NewTicker(eager)
	saw := map[string]string{}
	for {
		for _, target := range f.Args() {
			if now := attempt(target); now != saw[target] {
				saw[target] = now
				fmt.Println(time.Now().UnixNano(), target, now)
			}
			if now := saw[target]; now == *until {
				return nil
			}
		}
		select {
		case <-stop:
			return nil
		case <-tick.C:
			if time.Since(began) > time.Second {
				tick.Reset(*each)
			}
		}
	}
}

// attempt is what the other side calls itself, or "nothing" when nobody answered.
func attempt(target string) string {
	c, err := net.DialTimeout("tcp", target, time.Second)
	if err != nil {
		return "nothing"
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "nothing"
	}
	said := make([]byte, len(outside))
	if _, err := io.ReadFull(c, said); err != nil {
		return "nothing"
	}
	return string(said)
}

// sidecar listens where Envoy would. It must run as user 1337.
func sidecar() error {
	outbound, err := net.Listen("tcp", ":15001")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := outbound.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, taken)
			c.Close()
		}
	}()
	// Nobody listens on either port of the proof: kubelet's request to 15099 shows that the inbound rules are there, and ours to 15098 the outbound ones, which
	// turn it around to us.
	loop := "http://" + net.JoinHostPort(os.Getenv("POD_IP"), "15098") + "/loop"
	client := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	inbound := &http.Server{Addr: ":15006", ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/loop" {
			return
		}
		answer, err := client.Get(loop)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		answer.Body.Close()
	})}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; inbound.Close() }()
	if err := inbound.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}
