package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weft-mesh/weft/deploy/install"
	"github.com/weft-mesh/weft/deploy/release"
)

// newInstall is `weft install`.
func newInstall() *cobra.Command {
	var cluster clusterFlags
	var operator operatorFlags
	var apply applyFlags
	cmd := &cobra.Command{
		Use:     "install",
		Aliases: []string{"apply"},
		Short:   "Install the mesh into a cluster, or change an installed one",
		Long: `install brings the cluster to what the profile, the files and the settings say, in this order. It takes Istio's IstioOperator
files and --set paths. What it makes are Helm releases (istio-base, istiod, istio-cni, and one for each gateway), so helm list shows
them. Running it again changes what differs and goes on where an earlier run stopped.

The node agent is always part of it: pods of this mesh have no privileged init container.
Running pods keep their sidecars as they are until you restart them; install restarts none.`,
		Example: `  weft install
  weft install --set profile=demo -y
  weft install -f mesh.yaml --set meshConfig.accessLogFile=/dev/stdout
  weft install --set values.pilot.env.PILOT_DEBOUNCE_AFTER=200ms --set components.egressGateways[0].enabled=true
  weft install --set revision=1-20      # a second control plane beside the first`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := operator.plan(cmd)
			if err != nil {
				return err
			}
			to, err := cluster.connect()
			if err != nil {
				return err
			}
			question := fmt.Sprintf("This installs weft %s, profile %q, revision %s, into namespace %s of %s. Proceed?", release.Version(), plan.Profile, plan.Revisioned(), plan.Namespace, to.Host())
			return apply.run(cmd, to, plan, operator.force, question)
		},
	}
	operator.add(cmd, &cluster)
	cluster.add(cmd)
	apply.add(cmd)
	return cmd
}

// applyFlags say how a plan is brought to a cluster.
type applyFlags struct {
	yes           bool
	dryRun        bool
	wait          bool
	verify        bool
	timeout       time.Duration
	takeOwnership bool
	moveGateways  bool
	after         func() ([]string, error) // what to do next; the plan's when nil
}

func (a *applyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&a.yes, "skip-confirmation", "y", false, "do not ask")
	f.BoolVar(&a.dryRun, "dry-run", false, "let the API server check everything, and change nothing")
	f.BoolVar(&a.wait, "wait", true, "wait until everything is ready")
	f.DurationVar(&a.timeout, "readiness-timeout", 5*time.Minute, "how long a component may take to become ready")
	f.BoolVar(&a.verify, "verify", false, "run verify-install afterwards")
	f.BoolVar(&a.takeOwnership, "take-ownership", false, "take over objects of the same names that were made with kubectl or istioctl")
	f.BoolVar(&a.moveGateways, "move-gateways", false, "with a revision: gateways of another revision come to this one")
}

// run asks, installs, and says what comes next.
func (a *applyFlags) run(cmd *cobra.Command, to *install.Cluster, plan *install.Plan, force bool, question string) error {
	if err := to.Reachable(); err != nil {
		return err
	}
	if !a.yes && !a.dryRun {
		if err := confirm(cmd, question); err != nil {
			return err
		}
	}
	defer announceInterrupt(cmd)()
	show := newTicks(cmd.OutOrStdout())
	began := time.Now()
	got, err := to.Install(cmd.Context(), plan, install.Options{
		DryRun: a.dryRun, Wait: a.wait, Timeout: a.timeout, Force: force, TakeOwnership: a.takeOwnership, MoveGateways: a.moveGateways, Progress: show,
	})
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	for _, k := range got.Kept {
		fmt.Fprintln(out, k)
	}
	if a.dryRun {
		fmt.Fprintln(out, "✔ Dry run: the API server would accept all of it; nothing was changed")
		return nil
	}
	fmt.Fprintf(out, "✔ Installation complete (%.1f s)\n", time.Since(began).Seconds())
	for _, line := range install.Notes(got.Releases) {
		fmt.Fprintln(out, line)
	}
	next := plan.NextSteps()
	if a.after != nil {
		if next, err = a.after(); err != nil {
			return err
		}
	}
	for _, line := range next {
		fmt.Fprintln(out, line)
	}
	if a.verify {
		return verify(cmd.Context(), out, to, plan.Namespace, plan.Revision, "table")
	}
	return nil
}

// errRefused ends a verb that the user did not agree to.
var errRefused = errors.New("cancelled: nothing was changed")

// confirm asks a question that must be answered with yes.
func confirm(cmd *cobra.Command, question string) error {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return fmt.Errorf("%s\nthere is no terminal to answer on: say --skip-confirmation (-y)", question)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s (y/N) ", question)
	answer, err := readLine(cmd.Context(), in)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errRefused
}

// readLine reads a line unless ctx ends before.
func readLine(ctx context.Context, in io.Reader) (string, error) {
	type line struct {
		text string
		err  error
	}
	got := make(chan line, 1)
	go func() {
		text, err := bufio.NewReader(in).ReadString('\n')
		got <- line{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", errRefused
	case l := <-got:
		if l.err != nil && !errors.Is(l.err, io.EOF) {
			return "", l.err
		}
		return l.text, nil
	}
}
