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
	path, err := d.cluster.NetNS(&pods[0])
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
	if len(pods) == 0 {
		return errors.New("no pod of weftd found")
	}
	for i := range pods {
		if err := d.cluster.Kill(&pods[i], "weftd", syscall.SIGKILL); err != nil {
			return err
		}
	}
	return nil
}
