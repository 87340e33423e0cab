package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// addOutput gives a verb the flag -o with the formats that it has.
func addOutput(cmd *cobra.Command, into *string, preset string, formats ...string) {
	cmd.Flags().StringVarP(into, "output", "o", preset, orList(formats))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)) // fails only when the flag is unknown or registered twice
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(formats, *into) {
			return fmt.Errorf("--output is %q, want %s", *into, orList(formats))
		}
		return run(cmd, args)
	}
}

// printData writes a value for machines.
func printData(out io.Writer, format string, v any) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	b, err := yaml.Marshal(v)
	if err == nil {
		_, err = out.Write(b)
	}
	return err
}

// printList writes values for machines, or as a table of tab-separated rows. Where there are none it says so.
func printList[T any](out io.Writer, format string, all []T, none, header string, row func(T) string) error {
	if format != "table" {
		return printData(out, format, append([]T{}, all...)) // no null for none
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, none)
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, header)
	for _, v := range all {
		fmt.Fprintln(t, row(v))
	}
	return t.Flush()
}

// orList gives "table, json or yaml"; the empty format, a verb's own, is left out.
func orList(formats []string) string {
	formats = slices.DeleteFunc(slices.Clone(formats), func(f string) bool { return f == "" })
	return strings.Join(formats[:len(formats)-1], ", ") + " or " + formats[len(formats)-1]
}
