package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/sandbox"
	"github.com/weft-mesh/weft/sandbox/store"
)

func newSandboxLogs(f *sandboxFlags) *cobra.Command {
	q := sandbox.LogQuery{}
	var selector string
	var allContainers, prefix bool
	var since time.Duration
	cmd := &cobra.Command{
		Use:   "logs [-f] [-p] POD|TYPE/NAME [-c CONTAINER]",
		Short: "Show what a container wrote",
		Example: `  weft sandbox logs deploy/reviews-v1 -c istio-proxy --tail=20
  weft sandbox logs -l app=ratings --prefix -f`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: f.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			if len(args) == 2 {
				q.Container = args[1]
			}
			var pods []*corev1.Pod
			switch {
			case len(args) > 0:
				if pods, err = f.pods(cmd.Context(), c, args[0]); err == nil {
					pods = pods[:1]
				}
			case selector != "":
				pods, err = f.podsBySelector(cmd.Context(), c, selector)
			default:
				return errors.New("name a pod or TYPE/NAME, or give -l SELECTOR")
			}
			if err != nil {
				return serverError(err)
			}
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			var streams []stream
			for _, p := range pods {
				if !allContainers {
					streams = append(streams, stream{p.Name, q.Container})
					continue
				}
				for _, ct := range append(append([]corev1.Container(nil), p.Spec.InitContainers...), p.Spec.Containers...) {
					streams = append(streams, stream{p.Name, ct.Name})
				}
			}
			err = f.logs(cmd.Context(), c, streams, q, prefix, cmd.OutOrStdout())
			if cmd.Context().Err() != nil {
				return nil // Ctrl-C is how -f ends
			}
			return serverError(err)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&q.Container, "container", "c", "", "which container; the first if not given")
	fl.BoolVarP(&q.Follow, "follow", "f", false, "go on as more is written")
	fl.BoolVarP(&q.Previous, "previous", "p", false, "of the instance before the last restart")
	fl.BoolVar(&q.Timestamps, "timestamps", false, "the time before each line")
	fl.Int64Var(&q.Tail, "tail", -1, "so many lines from the end; negative means all")
	fl.DurationVar(&since, "since", 0, "only lines that are not older")
	fl.StringVarP(&selector, "selector", "l", "", "label selector instead of a name")
	fl.BoolVar(&allContainers, "all-containers", false, "all containers of the pod")
	fl.BoolVar(&prefix, "prefix", false, "[pod/NAME/CONTAINER] before each line")
	must(cmd.RegisterFlagCompletionFunc("container", f.completeContainers))
	return cmd
}

type stream struct{ pod, container string }

func (f *sandboxFlags) logs(ctx context.Context, c *sandbox.Client, streams []stream, q sandbox.LogQuery, prefix bool, out io.Writer) error {
	one := func(s stream, w io.Writer) error {
		query := q
		query.Container = s.container
		return c.Logs(ctx, f.ns(), s.pod, query, w)
	}
	if !prefix && (len(streams) == 1 || !q.Follow) {
		for _, s := range streams {
			if err := one(s, out); err != nil {
				return err
			}
		}
		return nil
	}
	// Several at once: whole lines, so that they do not run into each other.
	var mu sync.Mutex
	var wg sync.WaitGroup
	errs := make([]error, len(streams))
	for i, s := range streams {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, w := io.Pipe()
			go func() { w.CloseWithError(one(s, w)) }()
			br := bufio.NewReader(r)
			for {
				line, err := br.ReadString('\n')
				if line != "" {
					mu.Lock()
					if prefix {
						fmt.Fprintf(out, "[pod/%s/%s] ", s.pod, s.container)
					}
					fmt.Fprintln(out, strings.TrimSuffix(line, "\n"))
					mu.Unlock()
				}
				if err != nil {
					if !errors.Is(err, io.EOF) {
						errs[i] = err
					}
					return
				}
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (f *sandboxFlags) podsBySelector(ctx context.Context, c *sandbox.Client, selector string) ([]*corev1.Pod, error) {
	k, err := kindNamed("pods")
	if err != nil {
		return nil, err
	}
	objects, err := c.Get(ctx, sandbox.Query{Kind: k, Namespace: f.ns(), Selector: selector})
	if err != nil {
		return nil, err
	}
	var out []*corev1.Pod
	for _, o := range objects {
		if p, ok := o.(*corev1.Pod); ok {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no pods match %s", selector)
	}
	return out, nil
}

// completeContainers offers the containers of the pod that was named before.
func (f *sandboxFlags) completeContainers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := f.client()
	if err != nil || len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pods, err := f.pods(cmd.Context(), c, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, ct := range append(append([]corev1.Container(nil), pods[0].Spec.InitContainers...), pods[0].Spec.Containers...) {
		out = append(out, ct.Name)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func newSandboxExec(f *sandboxFlags) *cobra.Command {
	var container string
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "exec [-i] POD|TYPE/NAME [-c CONTAINER] -- COMMAND [ARG...]",
		Short: "Run a command in a container",
		Example: `  weft sandbox exec deploy/sleep -- curl -s http://reviews:9080/reviews/0
  echo hello | weft sandbox exec -i web-0 -c app -- cat`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: f.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			if tty {
				// Fingers type -it by themselves. Most of what follows it needs no terminal.
				stdin = true
				fmt.Fprintln(cmd.ErrOrStderr(), "weft: a sandbox has no terminals; -t is ignored, input and output are passed on as they are")
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			pods, err := f.pods(cmd.Context(), c, args[0])
			if err != nil {
				return serverError(err)
			}
			var in io.Reader
			if stdin {
				in = cmd.InOrStdin()
			}
			code, err := c.Exec(cmd.Context(), f.ns(), pods[0].Name, container, args[1:], in, cmd.OutOrStdout(), cmd.ErrOrStderr())
			if err != nil {
				return serverError(err)
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "which container; the first if not given")
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "ignored: a sandbox has no terminals")
	must(cmd.RegisterFlagCompletionFunc("container", f.completeContainers))
	return cmd
}

func newSandboxPortForward(f *sandboxFlags) *cobra.Command {
	var address []string
	cmd := &cobra.Command{
		Use:   "port-forward POD|TYPE/NAME [LOCAL:]REMOTE...",
		Short: "Make ports of a pod reachable on this machine",
		Long: `Connections to a local port come out on the pod's own loopback interface, so Envoy's admin port (15000) is
reachable too. LOCAL 0 or ":REMOTE" picks a free port. For a Service, REMOTE is the Service's port.`,
		Example: `  weft sandbox port-forward svc/productpage 9080
  weft sandbox port-forward deploy/reviews-v1 15000`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: f.completePods,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			return f.portForward(cmd, c, args[0], args[1:], address)
		},
	}
	cmd.Flags().StringSliceVar(&address, "address", []string{"localhost"}, "local addresses to listen on")
	return cmd
}

func (f *sandboxFlags) portForward(cmd *cobra.Command, c *sandbox.Client, word string, specs, addresses []string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	pods, err := f.pods(ctx, c, word)
	if err != nil {
		return serverError(err)
	}
	p := pods[0]
	var svc *corev1.Service
	if ts, err := targets([]string{word}); err == nil && ts[0].kind.Plural == "services" {
		objects, err := c.Get(ctx, sandbox.Query{Kind: ts[0].kind, Namespace: f.ns(), Name: ts[0].name})
		if err != nil {
			return serverError(err)
		}
		svc, _ = objects[0].(*corev1.Service)
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	done := make(chan error, len(specs)*len(addresses)*2)
	for _, spec := range specs {
		local, remote, err := forwardSpec(spec, svc, p)
		if err != nil {
			return err
		}
		for _, host := range addresses {
			hosts := []string{host}
			if host == "localhost" {
				hosts = []string{"127.0.0.1", "::1"}
			}
			for i, h := range hosts {
				l, err := net.Listen("tcp", net.JoinHostPort(h, strconv.Itoa(int(local))))
				if err != nil {
					if i > 0 {
						continue // a machine without IPv6, or the port is taken there: IPv4 serves
					}
					return fmt.Errorf("port %d cannot be listened on: %w; choose another one with LOCAL:%d", local, err, remote)
				}
				if local == 0 && i == 0 {
					local = uint16(l.Addr().(*net.TCPAddr).Port)
				}
				listeners = append(listeners, l)
				fmt.Fprintf(cmd.OutOrStdout(), "Forwarding from %s -> %d\n", l.Addr(), remote)
				go func() {
					done <- c.Forward(ctx, l, f.ns(), p.Name, remote, func(err error) {
						fmt.Fprintln(cmd.ErrOrStderr(), "weft: "+serverError(err).Error())
					})
				}()
			}
		}
	}
	// The pod's end ends the forwarding: what listens on would only refuse.
	k, err := kindNamed("pods")
	if err != nil {
		return err
	}
	go func() {
		err := c.Watch(ctx, sandbox.Query{Kind: k, Namespace: f.ns(), Name: p.Name}, func(e store.EventType, _ store.Object) error {
			if e == store.Deleted {
				return fmt.Errorf("the pod %s is gone", p.Name)
			}
			return nil
		})
		if ctx.Err() == nil {
			done <- err
		}
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-done:
		return err
	}
}

// forwardSpec reads "LOCAL:REMOTE", "PORT" or ":REMOTE"; ports may be names of the pod's or Service's ports.
func forwardSpec(spec string, svc *corev1.Service, p *corev1.Pod) (local, remote uint16, err error) {
	l, r, two := strings.Cut(spec, ":")
	if !two {
		r = l
	}
	remote, err = remotePort(r, svc, p)
	if err != nil {
		return 0, 0, err
	}
	switch {
	case l == "" || l == "0":
	case !two:
		if local = remote; svc != nil {
			if n, err := strconv.ParseUint(r, 10, 16); err == nil {
				local = uint16(n)
			}
		}
	default:
		n, err := strconv.ParseUint(l, 10, 16)
		if err != nil {
			return 0, 0, fmt.Errorf("%q is not a local port", l)
		}
		local = uint16(n)
	}
	return local, remote, nil
}

func remotePort(word string, svc *corev1.Service, p *corev1.Pod) (uint16, error) {
	named := func(name string) (uint16, bool) {
		for _, ct := range append(append([]corev1.Container(nil), p.Spec.InitContainers...), p.Spec.Containers...) {
			for _, port := range ct.Ports {
				if port.Name == name {
					return uint16(port.ContainerPort), true
				}
			}
		}
		return 0, false
	}
	if svc != nil {
		for _, sp := range svc.Spec.Ports {
			if sp.Name != word && strconv.Itoa(int(sp.Port)) != word {
				continue
			}
			if sp.TargetPort.Type == intstr.Int {
				return uint16(sp.TargetPort.IntVal), nil
			}
			if n, ok := named(sp.TargetPort.StrVal); ok {
				return n, nil
			}
			return 0, fmt.Errorf("pod %s has no port named %q", p.Name, sp.TargetPort.StrVal)
		}
		return 0, fmt.Errorf("service %s has no port %q", svc.Name, word)
	}
	if n, ok := named(word); ok {
		return n, nil
	}
	n, err := strconv.ParseUint(word, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is neither a port nor the name of one of pod %s", word, p.Name)
	}
	return uint16(n), nil
}
