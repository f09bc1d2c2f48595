package main

import (
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newEnvQuota() *cobra.Command {
	var (
		instances uint32
		memory    sizeFlag
		cpu       float64
		none      bool
	)
	cmd := &cobra.Command{
		Use:   "quota [ENV]",
		Short: "Bound what the instances of an environment may have together",
		Long: `Quota shows or sets what all instances of an environment may have together: how many there are, their
memory (the manifests' caps) and their CPU. 0 is no bound; what is not named stays as it is. What
runs, runs on: a quota bounds what is started. A rollout that starts first needs room for max_parallel
instances more.`,
		Example: "  pinnace env quota staging\n  pinnace env quota staging --memory 8GiB --instances 20\n  pinnace env quota staging --none",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				env = args[0]
			}
			if env == "" {
				return errNoEnvironment()
			}
			if cpu < 0 || cpu > 1e9 {
				return fail(exitInvalid, "--cpu 2.5", "%g is not a number of CPUs", cpu)
			}
			now, err := client.GetQuota(cmd.Context(), connect.NewRequest(&pinnacev1.GetQuotaRequest{Environment: env}))
			if err != nil {
				return err
			}
			quota, booked := now.Msg.Quota, now.Msg.Booked
			set := none
			if none {
				quota = &pinnacev1.Quota{}
			}
			for flag, to := range map[string]func(){
				"instances": func() { quota.Instances = instances },
				"memory":    func() { quota.MemoryBytes = memory.bytes },
				"cpu":       func() { quota.CpuMilli = int64(cpu*1000 + 0.5) },
			} {
				if cmd.Flags().Changed(flag) {
					set = true
					to()
				}
			}
			if set {
				res, err := client.SetQuota(cmd.Context(), connect.NewRequest(&pinnacev1.SetQuotaRequest{Environment: env, Quota: quota, IdempotencyKey: newKey()}))
				if err != nil {
					return err
				}
				if quota, booked = res.Msg.Quota, res.Msg.Booked; res.Msg.Unchanged {
					c.say("nothing to do: that is the quota of %s", env)
				}
			}
			if c.json {
				return c.printProto(&pinnacev1.GetQuotaResponse{Quota: quota, Booked: booked})
			}
			bound := func(limit int64, text string) string {
				if limit == 0 {
					return "no bound"
				}
				return text
			}
			cpus := func(milli int64) string { return strconv.FormatFloat(float64(milli)/1000, 'g', -1, 64) }
			c.print("instances  %d of %s", booked.GetInstances(), bound(int64(quota.GetInstances()), strconv.Itoa(int(quota.GetInstances()))))
			c.print("memory     %s of %s", sizeText(booked.GetMemoryBytes()), bound(quota.GetMemoryBytes(), sizeText(quota.GetMemoryBytes())))
			c.print("cpu        %s of %s", cpus(booked.GetCpuMilli()), bound(quota.GetCpuMilli(), cpus(quota.GetCpuMilli())))
			return nil
		},
	}
	cmd.Flags().Uint32Var(&instances, "instances", 0, "how many there may be")
	cmd.Flags().Var(&memory, "memory", "what their caps may be together")
	cmd.Flags().Float64Var(&cpu, "cpu", 0, "what their CPUs may be together")
	cmd.Flags().BoolVar(&none, "none", false, "no bounds, but those that are named beside it")
	return cmd
}
