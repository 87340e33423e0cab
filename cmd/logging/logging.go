// Package logging is the log of the mesh's servers: two flags and one slog.Logger. It decides nothing about what is logged.
package logging

import (
	"fmt"
	"io"
	"log/slog"
)

// Flags are --log-level and --log-format.
type Flags struct {
	level, format string
}

// Add defines the flags in a set, of package flag or of those that resemble it.
func (f *Flags) Add(set interface {
	StringVar(p *string, name, value, usage string)
}) {
	set.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	set.StringVar(&f.format, "log-format", "text", "text or json")
}

// Logger writes to w, which is standard error outside of tests. The error names the flag that has a bad value.
func (f *Flags) Logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", f.level)
	}
	h := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, h)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, h)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", f.format)
}
