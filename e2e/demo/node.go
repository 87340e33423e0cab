package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/weft-mesh/weft/redirect"
)

// rules shows what redirects one pod's traffic, checked against the kernel.
func rules(ctx context.Context, d *demo) (string, error) {
	pods, err := d.cluster.Pods(ctx, "default", "app=details")
	if err != nil {
		return "", err
	}
	if len(pods) == 0 {
		return "", errors.New("no pod of details")
	}
	spec, err := redirect.Decode(pods[0].Annotations[redirect.Annotation])
	if err != nil {
		return "", err
	}
	path, err := d.node.NetNS(&pods[0])
	if err != nil {
		return "", err
	}
	backend, err := redirect.Open(redirect.Auto)
	if err != nil {
		return "", err
	}
	var differences []string
	if err := redirect.InNetNS(path, func() (err error) {
		differences, err = backend.Verify(spec)
		return err
	}); err != nil {
		return "", err
	}
	if len(differences) > 0 {
		return "", fmt.Errorf("the kernel's rules are not the pod's: %s", strings.Join(differences, "; "))
	}
	text, err := backend.Text(spec)
	if err != nil {
		return "", err
	}
	fmt.Print(indent(text))
	return fmt.Sprintf("%d lines, verified", strings.Count(text, "\n")), nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("      ")
		b.WriteString(line)
	}
	return b.String()
}

// killWeftd ends the control plane without warning.
func killWeftd(ctx context.Context, d *demo) error {
	pods, err := d.cluster.Pods(ctx, "istio-system", "app=istiod")
	if err != nil {
		return err
	}
	killed := 0
	for i := range pods {
		pids, err := d.node.Processes(&pods[i], "weftd")
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return err
			}
			killed++
		}
	}
	if killed == 0 {
		return errors.New("no process of weftd found")
	}
	return nil
}
