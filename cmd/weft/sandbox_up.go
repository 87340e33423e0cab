package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/api"
)

// upFlags are those of verbs that bring a sandbox up.
type upFlags struct {
	images      []string
	cniBinDirs  []string
	ipFamily    string
	withoutCNI  bool
	withoutMesh bool
	set         []string
	proxyImage  string
	inject      bool
	verbose     bool
}

func (u *upFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&u.images, "image", nil, "run this program for an image: NAME=PATH (repeatable; NAME without a tag means any, a last * matches the rest)")
	f.StringArrayVar(&u.cniBinDirs, "cni-bin-dir", defaultCNIDirs(), "directory with CNI plugins (repeatable)")
	f.StringVar(&u.ipFamily, "ip-family", defaultFamily(), "addresses of pods: ipv4, ipv6 or dual")
	f.BoolVar(&u.withoutCNI, "without-cni", false, "leave weft-cni out of the CNI chain: shows that injected pods then do not start")
	f.BoolVar(&u.withoutMesh, "without-mesh", false, "no control plane, only plain pods")
	f.StringArrayVar(&u.set, "set", nil, "a setting of MeshConfig: KEY=VALUE, dots for nested keys (repeatable)")
	f.StringVar(&u.proxyImage, "proxy-image", "", "image of the sidecar instead of the default")
	f.BoolVar(&u.inject, "inject", false, "label the namespace (-n, or default) istio-injection=enabled, and make it if need be")
	f.BoolVarP(&u.verbose, "verbose", "v", false, "let the daemon log what it does")
	must(cmd.RegisterFlagCompletionFunc("ip-family", cobra.FixedCompletions([]string{"ipv4", "ipv6", "dual"}, cobra.ShellCompDirectiveNoFileComp)))
}

func defaultFamily() string {
	if sandbox.HasIPv6() {
		return string(sandbox.Dual)
	}
	return string(sandbox.IPv4)
}

// defaultCNIDirs are the places beside the executable where "make build" puts plugins, then the system's.
func defaultCNIDirs() []string {
	dirs := []string{"/opt/cni/bin", "/usr/lib/cni"}
	if exe, err := os.Executable(); err == nil {
		here := filepath.Dir(exe)
		dirs = append([]string{filepath.Join(here, "cni"), here}, dirs...)
	}
	return dirs
}

func (u *upFlags) options() (sandbox.Options, error) {
	family, err := sandbox.ParseIPFamily(u.ipFamily)
	if err != nil {
		return sandbox.Options{}, err
	}
	o := sandbox.Options{
		IPFamily: family, WithoutCNI: u.withoutCNI, WithoutMesh: u.withoutMesh,
		Mesh: u.set, ProxyImage: u.proxyImage, Verbose: u.verbose,
	}
	for _, d := range u.cniBinDirs {
		abs, err := filepath.Abs(d)
		if err != nil {
			return o, err
		}
		o.CNIBinDirs = append(o.CNIBinDirs, abs)
	}
	o.Images, err = parseImages(u.images)
	return o, err
}

// parseImages reads NAME=PATH, PATH from the working directory.
func parseImages(args []string) (map[string]string, error) {
	images := map[string]string{}
	for _, i := range args {
		name, path, ok := strings.Cut(i, "=")
		if !ok || name == "" || path == "" {
			return nil, fmt.Errorf("--image %s: write NAME=PATH, for example --image docker.io/me/app:1=./bin/app", i)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		images[name] = abs
	}
	return images, nil
}

// progress prints one line for each step, with its time.
func progress(w io.Writer) func(sandbox.Step) {
	return func(s sandbox.Step) {
		if !s.Ready {
			fmt.Fprintf(w, "  %-44s %s\n", s.Name, duration(s.Took))
		}
	}
}

func duration(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func newSandboxUp(f *sandboxFlags) *cobra.Command {
	u := &upFlags{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a sandbox up: node, cluster DNS, control plane",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := f.dir()
			if err != nil {
				return err
			}
			o, err := u.options()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "sandbox %q\n", d.Name())
			start := time.Now()
			if err := sandbox.Up(cmd.Context(), d, o, progress(out)); err != nil {
				return interrupted(cmd.Context(), err)
			}
			if u.inject {
				if err := enableInjection(cmd.Context(), sandbox.NewClient(d), f.ns()); err != nil {
					return err
				}
			}
			fmt.Fprintf(out, "ready after %s\n", duration(time.Since(start)))
			printNext(out, d, o, u.inject)
			return nil
		},
	}
	u.register(cmd)
	return cmd
}

// interrupted says in words that the user ended it.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted; nothing is left behind")
	}
	return err
}

// enableInjection labels a namespace, which need not exist.
func enableInjection(ctx context.Context, c *sandbox.Client, namespace string) error {
	text := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %q, labels: {istio-injection: enabled}}\n", namespace)
	results, err := c.Apply(ctx, []api.Document{{File: "--inject", Line: 1, Text: text}}, api.ApplyOptions{})
	if err != nil {
		return serverError(err)
	}
	for _, r := range results {
		if r.Error != "" {
			return errors.New(r.Error)
		}
	}
	return nil
}

func printNext(out io.Writer, d sandbox.Dir, o sandbox.Options, injecting bool) {
	flag := ""
	if d.Name() != "default" {
		flag = " --name " + d.Name()
	}
	if n, ok := sandbox.ProxyLimit(); ok && n < 100 && !o.WithoutMesh {
		fmt.Fprintf(out, "\nNote: this machine's limit of inotify instances allows about %d sidecars; for more: sysctl -w fs.inotify.max_user_instances=8192\n", n)
	}
	fmt.Fprintln(out, "\nTry next:")
	try := func(what, why string) { fmt.Fprintf(out, "  weft sandbox%s %-52s # %s\n", flag, what, why) }
	switch {
	case o.WithoutMesh:
		try("apply -f FILE", "plain pods: this sandbox has no control plane")
	case injecting:
		try("apply -f samples/bookinfo", "an application")
	default:
		try("label namespace default istio-injection=enabled", "pods made from now on get a sidecar")
		try("apply -f samples/bookinfo", "an application")
	}
	try("get pods -w", "watch it start")
	try("node -- curl -s http://SERVICE.NAMESPACE:PORT/", "a client outside the mesh")
	try("down", "takes everything away")
}

func newSandboxDown(f *sandboxFlags) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End a sandbox and remove all it had, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names := []string{f.name}
			if all {
				names = sandbox.Names(f.stateDir)
			}
			for _, n := range names {
				d, err := sandbox.Open(f.stateDir, n)
				if err != nil {
					return err
				}
				start := time.Now()
				switch err := sandbox.Down(cmd.Context(), d); {
				case errors.Is(err, sandbox.ErrNoSandbox):
					fmt.Fprintf(cmd.OutOrStdout(), "no sandbox %q\n", n)
				case err != nil:
					return err
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "sandbox %q is gone (%s)\n", n, duration(time.Since(start)))
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every sandbox below --state-dir")
	return cmd
}

func newSandboxStatus(f *sandboxFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What runs: process, network namespace, pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, l := range [][2]string{
				{"Sandbox", s.Name}, {"Daemon", fmt.Sprintf("process %d, since %s", s.PID, duration(time.Since(s.Started).Round(time.Second)))},
				{"Pods", fmt.Sprintf("%d, %d ready", s.Pods, s.Ready)}, {"Addresses", string(s.Options.IPFamily)},
				{"Cluster DNS", s.DNS}, {"Node", s.NetNS + "  (nsenter --net=...)"}, {"State", s.State},
				{"Log", filepath.Join(s.State, "daemon.log")},
			} {
				fmt.Fprintf(out, "%-13s%s\n", l[0]+":", l[1])
			}
			return nil
		},
	}
}

func newSandboxImage(f *sandboxFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "image [NAME=PATH...]",
		Short: "Show which programs stand for images, or map more of them",
		Long: `Without arguments, lists the images and the programs that run for them. NAME=PATH maps one more, or another
program; pods that wait for it start by themselves, those that run keep what they have.`,
		Example: `  weft sandbox image curlimages/curl=/usr/bin/curl`,
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := parseImages(args)
			if err != nil {
				return err
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			if len(images) > 0 {
				return serverError(c.MapImages(cmd.Context(), images))
			}
			if images, err = c.Images(cmd.Context()); err != nil {
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
			fmt.Fprintln(t, "IMAGE\tPROGRAM")
			for _, name := range slices.Sorted(maps.Keys(images)) {
				fmt.Fprintf(t, "%s\t%s\n", name, images[name])
			}
			return t.Flush()
		},
	}
}

func newSandboxDaemon() *cobra.Command {
	return &cobra.Command{
		Use:    "daemon STATE-DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return sandbox.Daemon(cmd.Context(), args[0]) },
	}
}
