package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/files"
)

// fromFiles is a source that reads YAML files and directories.
func fromFiles(paths []string, log *slog.Logger) source {
	return func(ctx context.Context, store *mesh.Store, changing, loaded func()) error {
		changes, err := files.Watch(ctx, paths...)
		if err != nil {
			return fmt.Errorf("--config: %w", err)
		}
		said := make(map[string]bool) // complaints that are in the log already
		feed := files.NewFeed(store)
		first := true
		for {
			select {
			case <-ctx.Done():
				return nil
			case c, ok := <-changes:
				if !ok {
					return nil
				}
				changing()
				said = complain(log, c, said)
				if err := feed.Give(c); err != nil {
					log.Error("configuration not used; what it replaces stays in force", "error", err)
				}
				if first {
					first = false
					loaded()
				}
			}
		}
	}
}

// complain logs what is wrong now and was not before. It returns what is wrong now.
func complain(log *slog.Logger, c files.Change, before map[string]bool) map[string]bool {
	said := make(map[string]bool)
	for _, err := range c.Errors {
		said[err.Error()] = true
		if !before[err.Error()] {
			log.Error("configuration not used; what it replaces stays in force", "error", err)
		}
	}
	for _, w := range c.Warnings {
		text := fmt.Sprint(w)
		said[text] = true
		if !before[text] {
			log.Warn("configuration", "warning", text)
		}
	}
	return said
}
