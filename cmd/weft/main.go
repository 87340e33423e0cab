// weft is the command line of the mesh: istioctl's verbs, and the sandbox.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/sandbox/pod"
)

func main() {
	pod.Init() // does not return when this process is to become a container
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newWeft().ExecuteContext(ctx)
	var status exitStatus
	switch {
	case errors.As(err, &status):
		os.Exit(int(status))
	case err != nil:
		fmt.Fprintln(os.Stderr, "weft: "+err.Error())
		os.Exit(1)
	}
}

// exitStatus is returned by verbs that pass on another program's exit status.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func newWeft() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "weft",
		Short:         "Service mesh with Istio's API and stock Envoy sidecars",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.AddCommand(newKubeInject(), newCheckInject(), newSandbox())
	return cmd
}
