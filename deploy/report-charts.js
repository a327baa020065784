// What the report draws with: these parts of Apache ECharts and no others. Built by report-charts.sh.
import { init, use } from "echarts/core";
import { BarChart, HeatmapChart, LineChart, ScatterChart } from "echarts/charts";
import { DataZoomInsideComponent, GridComponent, TooltipComponent, VisualMapContinuousComponent } from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";

use([
  BarChart, HeatmapChart, LineChart, ScatterChart,
  DataZoomInsideComponent, GridComponent, TooltipComponent, VisualMapContinuousComponent,
  CanvasRenderer,
]);
globalThis.echarts = { init };
