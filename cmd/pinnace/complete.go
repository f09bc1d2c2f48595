package main

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/release"
)

// completion gives the words that an argument may be. Whoever presses Tab waits for it, so the server gets
// a second, and what goes wrong is that there are no words.
type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective)

// complete asks the server for the words of a command's first argument.
func (c *cli) complete(words func(ctx context.Context) []cobra.Completion) completion {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		return words(ctx), cobra.ShellCompDirectiveNoFileComp
	}
}

// apps are the apps of the environment.
func (c *cli) apps(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.GetStatus(ctx, connect.NewRequest(&pinnacev1.GetStatusRequest{Environment: env}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, a := range res.Msg.Apps {
		words = append(words, a.App)
	}
	return words
}

// instances are the instances of the environment that have not ended.
func (c *cli) instances(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.ListInstances(ctx, connect.NewRequest(&pinnacev1.ListInstancesRequest{Environment: env}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, i := range res.Msg.Instances {
		words = append(words, cobra.CompletionWithDesc(i.Id, i.State))
	}
	return words
}

// deployments are those to the environment, the newest first.
func (c *cli) deployments(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.ListDeployments(ctx, connect.NewRequest(&pinnacev1.ListDeploymentsRequest{Environment: env, PageSize: 100}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, d := range res.Msg.Deployments {
		words = append(words, cobra.CompletionWithDesc(d.Id, d.App+" "+shortRelease(d.Release)+" "+d.State))
	}
	return words
}

// appsAndInstances are both, for commands that take either.
func (c *cli) appsAndInstances(ctx context.Context) []cobra.Completion {
	return append(c.apps(ctx), c.instances(ctx)...)
}

// releases are the Releases of all apps, the newest first.
func (c *cli) releases(ctx context.Context) []cobra.Completion {
	client, _, err := c.client()
	if err != nil {
		return nil
	}
	res, err := client.ListReleases(ctx, connect.NewRequest(&pinnacev1.ListReleasesRequest{}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, r := range res.Msg.Releases {
		words = append(words, cobra.CompletionWithDesc(release.ID(r.Id).Short(), r.App))
	}
	return words
}

// environments are the environments that there are.
func (c *cli) environments(ctx context.Context) []cobra.Completion {
	client, _, err := c.client()
	if err != nil {
		return nil
	}
	res, err := client.ListEnvironments(ctx, connect.NewRequest(&pinnacev1.ListEnvironmentsRequest{}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, e := range res.Msg.Environments {
		words = append(words, e.Name)
	}
	return words
}
