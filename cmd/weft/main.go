// weft is the command line of the mesh: istioctl's verbs, and the sandbox.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	_ "github.com/weft-mesh/weft/cmd/weft/brief"
	"github.com/weft-mesh/weft/sandbox/pod"
)

func main() {
	pod.Init() // does not return when this process is to become a container
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
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
	cmd.AddCommand(newInstall(), newUpgrade(), newUninstall(), newVerifyInstall(), newPrecheck(), newProfile(), newManifest(), newTag(), newRevision(), newExperimental(),
		newKubeInject(), newCheckInject(), newSandbox(), newVersion())
	return cmd
}

// onlyVerbs makes a command that does nothing itself refuse words that are none of its verbs: cobra would
// print its help and end with status 0.
func onlyVerbs(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := fmt.Sprintf("%q lists them", cmd.CommandPath()+" --help")
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean " + strings.Join(near, " or ") + "?"
		}
		return fmt.Errorf("%q is no verb of %q: %s", args[0], cmd.CommandPath(), hint)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}
