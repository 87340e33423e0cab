// weft-wait holds a pod's containers back until its proxy works. It is the postStart hook of the proxy's container, mounted from
// the mesh's own image, and it waits for what the startup probe waits for elsewhere: an answer 200 at
// http://POD_IP:15099/healthz/ready, which needs the pod's redirection and the proxy's configuration.
//
// It is a program of its own, and not a verb of weft, because every pod of the mesh waits for it to start: 1 to 2 ms, where
// weft, with the Kubernetes client and Helm linked in, needs 30 and more. So it imports next to nothing. Open wait.go.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"
)

const (
	// What the process that kubelet shows the log of writes errors to: Envoy, which runs as the same user.
	proxyStderr = "/proc/1/fd/2"
	// Kubernetes: the default of terminationMessagePath. kubelet puts its text into the container's status.
	terminationLog = "/dev/termination-log"
)

func main() {
	w := wait{PodIP: os.Getenv("POD_IP"), Node: os.Getenv("ISTIO_META_NODE_NAME")}
	flag.IntVar(&w.Port, "port", portProof, "port that is asked for "+path+" at $POD_IP")
	flag.IntVar(&w.HealthPort, "health-port", portHealth, "the proxy's own health port, asked to find out what is missing")
	flag.DurationVar(&w.For, "for", 15*time.Second, "give up after this long; a pod that is deleted meanwhile stays as long")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), `weft-wait is the postStart hook of injected proxies: it ends when the proxy of the pod $POD_IP is ready, with status 1 when it is not in time.
Why not is written to standard error, to the proxy's log, and to %s, which "kubectl describe pod" shows.

Example, in a pod's spec:
  lifecycle: {postStart: {exec: {command: [/weft/weft-wait, --for=15s]}}}

`, terminationLog)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "weft-wait: %q is no flag; see weft-wait --help\n", flag.Arg(0))
		os.Exit(2)
	}
	if err := w.run(); err != nil {
		text := "weft-wait: " + err.Error() + "\n"
		fmt.Fprint(os.Stderr, text)
		tell(terminationLog, os.O_TRUNC, text)
		tell(proxyStderr, os.O_APPEND, text)
		os.Exit(1)
	}
}

// tell writes where a user will look, if it can: the text has been written to standard error already.
func tell(file string, how int, text string) {
	f, err := os.OpenFile(file, os.O_WRONLY|how, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(text)
}
